"""The demo model as training sees it, and how it learns: losses, optimisers, processes."""
