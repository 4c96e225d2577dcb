"""AWS Lambda functions, unchanged: hosted without a proto, reached by gRPC and by API Gateway's events.

Decision record. A Lambda function becomes a service of the contract (``functions.v1.NAME``, made from mesh.toml by
``descriptor``), so everything that knows methods knows it: authorization, deadlines, gates, traces, workers, the graph,
reflection, the edge. Its one method ``Invoke`` takes and answers ``google.protobuf.Value``, the event and the result as
JSON values. HTTP is the edge's business (``mesh.edge.lambda_http.gateway`` makes API Gateway's event and reads the
result); this room knows no HTTP.

    ``config``      what mesh.toml says of a function → ``Function``
    ``document``    API documents → the routes that reach it
    ``eventlist``   functions of serverless.yml and SAM → the same
    ``descriptor``  ``Function`` → a file of the contract
    ``value``       JSON values ⇄ ``google.protobuf.Value``
    ``event``       what other triggers than HTTP hand to a handler; the verified user in API Gateway's events
    ``context``     the handler's second argument
    ``failure``     Lambda's error shape as a status
    ``functions``   the handlers of one function

Nothing is imported here: ``mesh.config.manifest`` reads ``config`` and stands below the rest.
"""
