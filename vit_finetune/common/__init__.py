"""What every room may use: errors, files, seeds, preprocessing. Standard library and numpy only."""
