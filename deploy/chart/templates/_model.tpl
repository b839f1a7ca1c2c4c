{{/* Where a process finds a model: a path, or a name that it fetches itself. Takes the source. */}}
{{- define "offshoot.model.path" -}}
{{- if hasPrefix "pvc://" . -}}
{{- $path := trimPrefix "pvc://" . | splitn "/" 2 -}}
{{- printf "/models/%s" (default "" $path._1) | trimSuffix "/" -}}
{{- else if hasPrefix "oci://" . -}}
{{- $path := splitn "#" 2 . -}}
{{- printf "/models/%s" (default "" $path._1 | trimPrefix "/") | trimSuffix "/" -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The volume of a source, with the name models; empty for a path. Takes a list of the root and the source. */}}
{{- define "offshoot.model.volume" -}}
{{- $root := index . 0 -}}
{{- $source := index . 1 -}}
{{- if hasPrefix "pvc://" $source }}
- name: models
  persistentVolumeClaim: {claimName: {{ (trimPrefix "pvc://" $source | splitn "/" 2)._0 }}, readOnly: true}
{{- else if hasPrefix "oci://" $source }}
- name: models
  image:
    reference: {{ (trimPrefix "oci://" $source | splitn "#" 2)._0 }}
    {{- with $root.Values.image.pullPolicy }}
    pullPolicy: {{ . }}
    {{- end }}
{{- else if hasPrefix "hf://" $source }}
- name: models
  {{- with $root.Values.huggingFace.cache.claim }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $root.Values.huggingFace.cache.size }}}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Variables by which a process fetches a model of the hub. Takes a list of the root and the source. */}}
{{- define "offshoot.model.hub" -}}
{{- $hub := (index . 0).Values.huggingFace -}}
{{- if hasPrefix "hf://" (index . 1) }}
- {name: HF_HOME, value: /models}
{{- with $hub.endpoint }}
- {name: HF_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with $hub.tokenSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: token}
{{- end }}
{{- end }}
{{- end -}}
