"""RequestParser, the ingress deployment, and what it needs to read a request."""
