"""The schedule. This version schedules the sweep; policies follow."""
