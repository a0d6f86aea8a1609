"""One running service: what a request costs in time and memory, and what a click on the page does."""
