"""Is a data set what it claims to be? Findings about its folders, files, classes, copies and colours."""
