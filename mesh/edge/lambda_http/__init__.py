"""API Gateway for Lambda functions: requests as its events, results as HTTP responses.

The edge makes the event, because only it has the HTTP request. The function's sidecar adds the verified user. Events
and results are those that AWS documents or that were recorded there (docs/lambda.md). A result that is no response is
502 without a reason: the log has it. The package imports nothing of ``mesh.edge.http``. ``mesh.edge.app`` sends the
response.
"""
