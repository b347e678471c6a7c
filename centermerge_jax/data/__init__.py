"""Real data: archives fetched as files, data sets inside them, tasks made of those."""
