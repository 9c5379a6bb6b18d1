"""The families of published models, each as data: one file for those that resemble each other."""
