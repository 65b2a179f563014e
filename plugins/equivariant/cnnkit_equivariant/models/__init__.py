"""Networks, one paper to a file."""
