"""`vitrail report`: a self-contained HTML page about stored features; the template, the style and the script lie next to page.py."""
