"""The classification job: what a field, a picture or an outline shows, however it is turned or scaled."""
