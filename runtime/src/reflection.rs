//! The gRPC reflection service, by which tools such as grpcurl learn what a process serves. It is off unless asked for
//! (`--reflection`): it tells everybody who can connect.

use tonic_reflection::server::{Builder, Error};

use crate::NetArgs;
use crate::serve::Router;

/// Adds both versions of the service (`grpc.reflection.v1`, and `v1alpha` for older tools) to `router`, if `args` ask for
/// it. `descriptors` is an encoded `FileDescriptorSet` that describes the services in `names`; the health service is
/// described as well.
///
/// # Errors
/// When the descriptors cannot be decoded.
pub fn add(
    router: Router,
    args: &NetArgs,
    names: &[&str],
    descriptors: &'static [u8],
) -> Result<Router, Error> {
    if !args.reflection {
        return Ok(router);
    }
    let builder = || {
        let described = Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(tonic_health::pb::health_server::SERVICE_NAME);
        (names.iter()).fold(described, |builder, &name| builder.with_service_name(name))
    };
    Ok(router
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?))
}
