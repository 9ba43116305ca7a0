"""Long trials: each tests what the suite tests with a small count, as often as one likes."""
