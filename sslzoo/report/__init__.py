"""What does a run look like? Pictures before tables: masks, curves, features."""
