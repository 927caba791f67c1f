"""The trained network and its images, as secateur sees them."""
