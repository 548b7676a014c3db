"""Several hosts under one engine: who hosts what, how hosts join, how their loss is noticed."""
