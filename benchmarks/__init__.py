"""What the package costs, beside what it could cost at least and beside others: see README.md."""
