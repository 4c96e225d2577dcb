"""An AWS Lambda function, as its author wrote it for AWS."""
