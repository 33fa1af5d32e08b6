"""The CAM browser and its page."""
