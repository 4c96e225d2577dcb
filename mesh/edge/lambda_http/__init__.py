"""API Gateway for Lambda functions: requests as its events, results as responses."""
