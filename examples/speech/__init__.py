"""What the examples have in common, in small modules: copy what you need into your own project."""
