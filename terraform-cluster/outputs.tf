output "jobspecs" {
  description = "The jobs as they are submitted."
  value       = { for name, job in nomad_job.bootstream : name => job.jobspec }
}
