"""Dense Predictive Coding: predict the features of the next blocks of a video."""
