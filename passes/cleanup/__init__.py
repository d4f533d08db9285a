"""What is done last: rewrites that no other pass has to see."""
