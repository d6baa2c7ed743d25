"""The alternatives, as a competent user would write them."""
