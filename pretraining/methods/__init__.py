"""Methods of self-supervised training: a head, a loss, and the step of student and teacher, one file per method."""
