"""All endpoints of the gateway, in the order of the API reference, and the routes that serve them."""

from typing import Final

from stagebus.gateway.api import (
    approval_endpoints,
    call_endpoints,
    catalog_endpoints,
    document_endpoints,
    event_endpoints,
    explain_endpoint,
    export_endpoint,
    feed_endpoint,
    page_endpoints,
    run_endpoints,
    session_endpoints,
    system_endpoints,
    thread_endpoints,
    thread_event_endpoint,
    thread_ticket_endpoints,
    ticket_endpoints,
    webhook_endpoints,
)
from stagebus.gateway.api.method_router import build_routes
from stagebus.gateway.views.view_table import VIEW_ENDPOINTS

ENDPOINTS: Final = (
    # Before the paths of one run, whose id would match its last part.
    *feed_endpoint.ENDPOINTS,
    *run_endpoints.ENDPOINTS,
    *event_endpoints.ENDPOINTS,
    *explain_endpoint.ENDPOINTS,
    *export_endpoint.ENDPOINTS,
    *thread_endpoints.ENDPOINTS,
    *thread_event_endpoint.ENDPOINTS,
    *thread_ticket_endpoints.ENDPOINTS,
    *approval_endpoints.ENDPOINTS,
    *call_endpoints.ENDPOINTS,
    *VIEW_ENDPOINTS,
    *ticket_endpoints.ENDPOINTS,
    *session_endpoints.ENDPOINTS,
    *catalog_endpoints.ENDPOINTS,
    *webhook_endpoints.ENDPOINTS,
    *system_endpoints.ENDPOINTS,
    *document_endpoints.ENDPOINTS,
    *page_endpoints.ENDPOINTS,
)
ROUTES: Final = build_routes(ENDPOINTS)
