"""AWS Lambda functions, hosted unchanged: without a .proto file, called by gRPC and through API Gateway events.

Decisions:

- *A Lambda function is a service of the contract* (``functions.v1.NAME``), which ``service_descriptor`` builds from
  mesh.toml. So authorization, deadlines, concurrency limits, traces, workers, the graph, reflection and the edge treat
  it like any other service. Its method ``Invoke`` has ``google.protobuf.Value`` as request and response: the event and
  the result as JSON values.
- *HTTP belongs to the edge.* ``mesh.edge.lambda_http.gateway`` builds API Gateway's event and reads the result. This
  package knows no HTTP.
- *A failure is a status* with Lambda's error object in its details (``lambda_error``), because a gRPC call fails so.

Refused: Lambda's runtime API, X-Ray, and mapping templates of API Gateway.

    ``service_descriptor``  a ``LambdaFunction`` of mesh.toml → a file of the contract
    ``handlers``            the gRPC handlers of one function
    ``handler_events``      events of schedules and publications; the verified user in API Gateway events
    ``lambda_context``      the handler's second argument
    ``lambda_error``        Lambda's error object as a status
    ``json_value``          JSON values ⇄ ``google.protobuf.Value``
    ``json_text``           events and results as JSON text in a ``Value``
"""
