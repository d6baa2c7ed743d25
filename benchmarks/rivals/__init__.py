"""What a user would use instead, as a competent one would write it."""
