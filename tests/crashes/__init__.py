"""Kill writers at random points while readers query."""
