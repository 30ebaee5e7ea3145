"""The demo: sample data, and the small base model that it is for."""
