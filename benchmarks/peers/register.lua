-- wrk: one registration as JSON, over and over.
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{"name":"alice","email":"alice@example.com","password":"pppppppppppppppppppp","age":30,"tags":["a"]}'
