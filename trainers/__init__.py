"""Training and evaluation: the only package that imports both the model (`tc_clip`) and the videos (`video_datasets`)."""
