"""Training and evaluation: the package that imports both the models (`tc_clip`) and the videos (`video_datasets`)."""
