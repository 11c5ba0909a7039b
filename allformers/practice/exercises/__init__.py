"""One file an exercise: the task, the solution, and how it is checked. Their order is that of `course.SECTIONS`."""
