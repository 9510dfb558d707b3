data "aws_caller_identity" "current" {}

data "aws_region" "current" {}

data "aws_partition" "current" {}

locals {
  bucket_arn = "arn:${data.aws_partition.current.partition}:s3:::${var.bucket_name}"
  repository_arn = join(":", [
    "arn", data.aws_partition.current.partition, "ecr", data.aws_region.current.id,
    data.aws_caller_identity.current.account_id, "repository/${var.docker_repository_name}/*",
  ])
}

resource "aws_s3_bucket" "templates" {
  count  = var.create_bucket ? 1 : 0
  bucket = var.bucket_name

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "templates" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.templates[0].id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "templates" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.templates[0].id

  versioning_configuration {
    status = var.bucket_versioning ? "Enabled" : "Suspended"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "templates" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.templates[0].id

  rule {
    id     = "abort-unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = var.abort_uploads_after_days
    }
  }

  rule {
    id     = "delete-previous-versions"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.previous_versions_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.templates]
}

resource "aws_iam_role" "hosts" {
  name = var.role_name
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

# What hosts may do; `bootstream doctor` tries each from a host.
resource "aws_iam_role_policy" "hosts" {
  name = "bootstream"
  role = aws_iam_role.hosts.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Bucket"
        Effect   = "Allow"
        Action   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
        Resource = local.bucket_arn
      },
      {
        Sid    = "Objects"
        Effect = "Allow"
        Action = [
          "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
          "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
        ]
        Resource = "${local.bucket_arn}/*"
      },
      {
        Sid      = "RegistryToken"
        Effect   = "Allow"
        Action   = "ecr:GetAuthorizationToken"
        Resource = "*"
      },
      {
        Sid    = "Images"
        Effect = "Allow"
        Action = [
          "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability",
          "ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload",
          "ecr:PutImage", "ecr:DescribeRepositories", "ecr:DescribeImages",
          "ecr:BatchDeleteImage", "ecr:CreateRepository",
        ]
        Resource = local.repository_arn
      },
    ]
  })
}

resource "aws_iam_instance_profile" "hosts" {
  name = var.role_name
  role = aws_iam_role.hosts.name
}
