"""Writers killed at random points, and readers at work meanwhile."""
