"""Training: schedules, the loop, sessions that save and resume, and several processes together."""
