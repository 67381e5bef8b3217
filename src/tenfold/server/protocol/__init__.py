"""Bodies of requests and answers, as pydantic models: what the OpenAPI document is made from."""
