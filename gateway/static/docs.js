// The API reference, rendered from the gateway's own OpenAPI document.

SwaggerUIBundle({
  domNode: document.getElementById("reference"),
  url: new URL("../openapi.json", import.meta.url).href,
  deepLinking: true,
  validatorUrl: null, // by default it sends the document's URL to validator.swagger.io
});
