"""Pictures and pages for people: attention, principal components, similar images, and `report/`, the page about stored features."""
