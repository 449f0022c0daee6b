"""A gRPC server that answers each request, whatever its method, with the bytes that came."""

from concurrent import futures

import grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), handlers=[Echo()])
server.add_insecure_port("0.0.0.0:50051")
server.start()
print("listening", flush=True)
server.wait_for_termination()
