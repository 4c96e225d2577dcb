"""Sample of an AWS Lambda function, written for AWS."""
