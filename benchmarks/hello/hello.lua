-- wrk: one greeting as JSON, over and over.
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{"name":"alice"}'
