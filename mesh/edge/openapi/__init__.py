"""OpenAPI 3.1 document of the routes, and the page ``/docs`` that shows it.

Decisions:

- Everything in the document is derived from the contract, so that there is nothing to keep in step with it. Of Lambda
  functions, the contract has what their own OpenAPI documents say (``lambda_operations``).
- The document offers only what the edge accepts, and requires only what the edge requires. Spellings that the edge also
  accepts (proto names, enum numbers, 64-bit integers as numbers) are left out.
- The page is our own. The packages that bring Swagger UI as a wheel have no OpenAPI 3.1 or depend on a web framework,
  and Swagger UI needs a looser Content-Security-Policy.
- Everything but ``pages`` is pure.
"""
