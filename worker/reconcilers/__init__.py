"""What mends what can be lost: a small file per kind of loss."""
