"""What a model attends to in a video: recorded, drawn, as a page."""
