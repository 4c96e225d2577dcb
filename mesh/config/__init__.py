"""Configuration: reads mesh.toml and the environment into a frozen ``Manifest``, or into a list of faults.

Decisions:

- mesh.toml holds only placement and size of the services. What they do is in the contract.
- The environment overrides every value: ``MESH_SERVICES_LOGIN_DATABASE`` is ``services.login.database``.
- ``manifest`` is the only module that reads the file and the environment. All others get frozen values.
- An unknown key, a wrong type and a value that cannot work are faults. A fault names file, table and key, and the
  correct form. All of them are reported at once, and none shows a password.
- A Lambda function keeps the API document it has (Swagger, OpenAPI, serverless.yml, SAM) as its configuration.
"""
