//! Rust client code, made by cargo at each change of the schema. Put Tandem's `proto` folder beside Cargo.toml.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The services; what they import is compiled with them.
    let services = [
        "proto/tandem/v1/router_service.proto",
        "proto/tandem/v1/worker_service.proto",
        "proto/tandem/v1/job_service.proto",
        "proto/tandem/v1/pair_service.proto",
        "proto/tandem/v1/adapter_service.proto",
        "proto/tandem/v1/cache_service.proto",
        "proto/tandem/v1/profile_service.proto",
    ];
    tonic_prost_build::configure().build_server(false).compile_protos(&services, &["proto"])?;
    Ok(())
}
