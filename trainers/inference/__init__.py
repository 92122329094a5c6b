"""A trained model in use: predictions, exports, visualisation."""
