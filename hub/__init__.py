"""Models as folders: saving, the code that loads them without vitrail, and uploading to the Hub."""
