{{- define "sidestep.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sidestep.fullname" -}}
{{- $name := include "sidestep.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* What never changes between releases: the selector of a DaemonSet can't be changed. */ -}}
{{- define "sidestep.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sidestep.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sidestep.labels" -}}
{{ include "sidestep.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "sidestep.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "sidestep.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "sidestep.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "sidestep.priorityClassName" -}}
{{- if .Values.priorityClass.name }}
{{- .Values.priorityClass.name }}
{{- else if .Values.priorityClass.create }}
{{- include "sidestep.fullname" . }}
{{- else -}}
system-node-critical
{{- end }}
{{- end }}

{{- /* Of `config.telemetry.listen`: probes, Service and NetworkPolicy follow it. */ -}}
{{- define "sidestep.metricsPort" -}}
{{- $listen := dig "telemetry" "listen" "" .Values.config | default "" }}
{{- if not (regexMatch ":[0-9]+$" $listen) }}
{{- fail "config.telemetry.listen: an address and a port are needed, such as 0.0.0.0:9464; the probes ask there" }}
{{- end }}
{{- regexFind "[0-9]+$" $listen }}
{{- end }}

{{- define "sidestep.configFile" -}}
{{ toYaml .Values.config }}
{{- end }}

{{- /* AppArmor has had a field since Kubernetes 1.30; before that it was an annotation of the Pod. */ -}}
{{- define "sidestep.appArmorAnnotation" -}}
{{- if and (not .Values.security.privileged) (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) }}
{{- with .Values.security.appArmorProfile }}
{{- if eq .type "Localhost" -}}
container.apparmor.security.beta.kubernetes.io/sidestep: localhost/{{ .localhostProfile }}
{{- else -}}
container.apparmor.security.beta.kubernetes.io/sidestep: {{ eq .type "Unconfined" | ternary "unconfined" "runtime/default" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sidestep.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
priorityClassName: {{ include "sidestep.priorityClassName" . }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "sidestep.securityContext" -}}
{{- with .Values.security -}}
# Capabilities that are added take effect for root alone, and the files of state are root's.
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
readOnlyRootFilesystem: true
{{- if .privileged }}
privileged: true
{{- else }}
privileged: false
# The kernel's `no_new_privs`. Kubernetes refuses `false` together with CAP_SYS_ADMIN.
allowPrivilegeEscalation: {{ has "SYS_ADMIN" .capabilities }}
capabilities:
  drop: [ALL]
  add: [{{ join ", " .capabilities }}]
{{- with .seccompProfile }}
seccompProfile: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if semverCompare ">=1.30.0-0" $.Capabilities.KubeVersion.Version }}
{{- with .appArmorProfile }}
appArmorProfile: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- with .seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
